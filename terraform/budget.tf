resource "google_billing_budget" "monthly" {
  count           = var.monthly_budget == null ? 0 : 1
  billing_account = var.billing_account
  display_name    = var.name

  budget_filter {
    projects = ["projects/${var.project}"]
  }

  amount {
    specified_amount {
      units = tostring(floor(var.monthly_budget))
    }
  }

  dynamic "threshold_rules" {
    for_each = [0.5, 0.9, 1.0]
    content {
      threshold_percent = threshold_rules.value
    }
  }

  lifecycle {
    precondition {
      condition     = var.billing_account != null
      error_message = "monthly_budget needs billing_account: gcloud billing accounts list"
    }
  }
}
